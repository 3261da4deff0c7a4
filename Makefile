# make        builds bin/kiln
# make test   formatting, vet, staticcheck, all tests under the race detector
# make demo   builds an image of two stages without any registry and runs it
# make help   lists the rest

GO      ?= go
PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOARCH  ?= $(shell $(GO) env GOARCH)

INIT    := runner/sandbox/initbin/init
MONITOR := runner/monitor/monitorbin/program
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.gitCommit=$(shell git rev-parse HEAD 2>/dev/null)
BUILD   := CGO_ENABLED=0 GOARCH=$(GOARCH) $(GO) build -trimpath

# The race detector needs cgo and a C compiler; without one, tests run plain.
CC_FOUND := $(shell test "$$($(GO) env CGO_ENABLED)" != 0 && command -v $$($(GO) env CC))
RACE     := $(if $(CC_FOUND),-race)

MODULES   := . examples/toolbox
TESTFLAGS ?=
FUZZTIME  ?= 20s

.PHONY: all kiln init monitor test test-vm conformance lint demo bench bench-micro fuzz soak update cross install clean toolbox runtime-tools help

all: kiln

# The sandbox's init is a small program of its own, embedded into kiln.
init:
	@$(BUILD) -ldflags '-s -w' -o $(INIT) ./runner/sandbox/init

# So is a container's monitor, which has the init in it in turn. It is packed by
# a program for this machine, whatever GOARCH is.
monitor: init
	@$(BUILD) -tags kiln_embed,kiln_monitor -ldflags '-s -w' -o $(MONITOR) ./runner/monitor/program
	@CGO_ENABLED=0 GOARCH= $(GO) run ./runner/monitor/monitorbin/pack $(MONITOR)
	@rm -f $(MONITOR)

kiln: monitor ## bin/kiln, static
	@$(BUILD) -tags kiln_embed -ldflags '$(LDFLAGS)' -o bin/kiln ./cmd/kiln

toolbox:
	@cd examples/toolbox && $(BUILD) -ldflags '-s -w' -o ../../bin/toolbox .

test: lint ## gofmt, vet, staticcheck, tests
ifeq ($(RACE),)
	@echo "no C compiler, or cgo is off: the tests run without the race detector"
endif
	@for m in $(MODULES); do \
		(cd $$m && GORACE=atexit_sleep_ms=0 CGO_ENABLED=$(if $(RACE),1,0) $(GO) test $(RACE) -timeout 20m $(TESTFLAGS) ./...) || failed=1; \
	done; test -z "$$failed"

conformance: ## Dockerfiles that must give BuildKit's images; with BUILDKIT_HOST both build
	@$(GO) test ./frontend/dockerfile/conformance -count 1 $(TESTFLAGS)

lint: ## gofmt, vet, staticcheck
	@bad=$$(gofmt -l .); test -z "$$bad" || { echo "not formatted:"; echo "$$bad"; exit 1; }
	@for m in $(MODULES); do (cd $$m && $(GO) vet ./... && $(GO) tool staticcheck ./...) || exit 1; done

runtime-tools: kiln ## the validation programs of RUNTIME_TOOLS (a checkout of opencontainers/runtime-tools)
	@sh runner/oci/testdata/runtime-tools.sh "$(RUNTIME_TOOLS)" bin/kiln

test-vm: ## tests of the sandbox on Debian's kernel, with control groups of version 2 alone
	@sh runner/sandbox/testdata/vm/run.sh '$(VM_RUN)'

demo: kiln toolbox ## build an example on a base made here, change it, build again
	@sh examples/demo.sh

bench: kiln toolbox ## measure, beside other builders and the machine's limits
	@$(BUILD) -o bin/bench ./bench
	@bin/bench $(BENCHFLAGS)

# Packages with micro-benchmarks, and how often each is run.
MICRO      ?= .
MICROPKGS  ?= ./solver ./cache ./cache/archive ./cache/tree ./runner ./runner/sandbox ./exporter/blob
MICROCOUNT ?= 6

bench-micro: init ## micro-benchmarks, compared with the last commit
	@sh bench/micro.sh '$(MICRO)' '$(MICROCOUNT)' $(MICROPKGS)

fuzz: ## each fuzz test for FUZZTIME
	@grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			echo "$$name, $$(dirname "$$file")"; \
			$(GO) test "$$(dirname "$$file")" -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x || exit 1; \
		done; \
	done

soak: kiln ## the tests that kill and crowd, ten times
	@KILN_SOAK=1 $(GO) test ./cmd/kiln -run 'Killed|Concurrent' -count 10 -timeout 120m
	@KILN_SOAK=1 $(GO) test ./runner -run 'RandomReads' -timeout 60m

update: ## rewrite the golden files; read the diff
	@$(GO) test ./frontend/dockerfile -run Golden -update

cross: ## everything compiles for arm64
	@CGO_ENABLED=0 GOARCH=arm64 $(GO) build -o /dev/null ./cmd/kiln
	@for m in $(MODULES); do (cd $$m && CGO_ENABLED=0 GOARCH=arm64 $(GO) vet ./...) || exit 1; done

install: kiln ## into $(DESTDIR)$(PREFIX)/bin
	@install -D -m 755 bin/kiln $(DESTDIR)$(PREFIX)/bin/kiln

clean:
	@rm -rf bin $(INIT) $(MONITOR).zst $(MONITOR).sum

help:
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1	\2/p' Makefile | while read -r a b; do printf 'make %-14s %s\n' "$$a" "$$b"; done
