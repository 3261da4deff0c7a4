// Command kiln builds container images and runs them.
package main

func main() {}
