// An empty file in assembly lets join.go declare functions without a body.
