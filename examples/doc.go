// Package examples holds real projects that are built and run by its tests.
package examples
