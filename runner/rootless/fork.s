// An empty file in assembly lets fork.go declare functions without a body.
