# make        builds bin/kiln
# make test   formatting, vet, staticcheck, all tests under the race detector
# make demo   builds an image of two stages without any registry and runs it

GO      ?= go
PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOARCH  ?= $(shell $(GO) env GOARCH)

INIT    := runner/sandbox/initbin/init
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD   := CGO_ENABLED=0 GOARCH=$(GOARCH) $(GO) build -trimpath

# The race detector needs cgo and a C compiler; without one, tests run plain.
CC_FOUND := $(shell command -v $(or $(CC),cc) 2>/dev/null)
RACE     := $(if $(CC_FOUND),-race)

.PHONY: all kiln init test lint demo bench fuzz soak update cross install clean toolbox

all: kiln

# The sandbox's init is a small program of its own, embedded into kiln.
init:
	$(BUILD) -ldflags '-s -w' -o $(INIT) ./runner/sandbox/init

kiln: init
	$(BUILD) -tags kiln_embed -ldflags '$(LDFLAGS)' -o bin/kiln ./cmd/kiln

toolbox:
	cd examples/toolbox && $(BUILD) -ldflags '-s -w' -o ../../bin/toolbox .

test: lint
ifeq ($(RACE),)
	@echo "no C compiler: the tests run without the race detector"
endif
	cd examples/toolbox && $(GO) test $(TESTFLAGS) ./...
	$(GO) test $(RACE) $(TESTFLAGS) ./...

lint:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "gofmt: $$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

demo: kiln toolbox
	sh examples/demo.sh

bench: kiln toolbox
	$(GO) run ./bench

FUZZTIME ?= 20s
fuzz:
	$(GO) test ./frontend/dockerfile -run '^$$' -fuzz FuzzBuild -fuzztime $(FUZZTIME)
	$(GO) test ./cache/tree -run '^$$' -fuzz Fuzz -fuzztime $(FUZZTIME)
	$(GO) test ./cache/archive -run '^$$' -fuzz FuzzUnpack -fuzztime $(FUZZTIME) -fuzzminimizetime 10x

soak: kiln
	KILN_SOAK=1 $(GO) test ./cmd/kiln -run 'Killed|Concurrent' -count 10 -timeout 60m

update:
	$(GO) test ./frontend/dockerfile -run Golden -update

cross:
	$(MAKE) kiln GOARCH=arm64 INIT=$(INIT) && mv bin/kiln bin/kiln-arm64 && $(MAKE) init

install: kiln
	install -D -m 755 bin/kiln $(DESTDIR)$(PREFIX)/bin/kiln

clean:
	rm -rf bin $(INIT)
