// Package conformance has no code of its own: its test builds each case of
// testdata with the kiln program and compares the image, path by path, with
// what BuildKit makes of the same case. The reference's results are recorded
// in the cases, so that no BuildKit is needed to run them; with BUILDKIT_HOST
// set and buildctl on PATH both build, and -record writes the results anew.
//
// A case is a txtar file. Its comment says what it shows and may hold
//
//	flags: --build-arg A=1 --target x     words of docker's build command
//	flag: --label a=b c                   one word, blanks included
//	needs: bzip2 xz                       programs that setup wants; without them the case is skipped
//	message: REGEXP                       what Kiln's error must say
//	position: none                        Kiln's error has no line to name
//	differs: WHY                          Kiln differs on purpose; section "kiln" has how
//
// and its files are the context, except
//
//	setup         a shell script that is run in the context: links, modes, devices
//	tar NAME      a text that becomes the archive NAME; see archive in case_test.go
//	want          recorded: the image the reference makes, or that it refuses
//	kiln          recorded: the same of Kiln, where it differs
//
// FROM toolbox is the base image of the examples. In a listing the time "old"
// is that of the context's files where setup does not say otherwise, and
// "now" is a time of the build itself.
package conformance
