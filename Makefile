# Everything that people do with this tree. `make help` lists it.

PRESET ?= dev
JOBS ?= $(shell nproc)
# Seconds for each fuzz target; seeded runs for each simulation of `make soak`, and what it asks of machines after those:
# checkpoints of a database, seconds of a machine's life in random order, and clones of a container, likewise.
FUZZ_SECONDS ?= 60
SOAK_RUNS ?= 1000000
SOAK_CHECKPOINTS ?= 50
SOAK_SECONDS ?= 3600
SOAK_CONTAINERS ?= 1000

CMAKE_OPTIONS := -DBERTH_WERROR=$(if $(CI),ON,OFF)
export BERTH_JOBS := $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help setup build deb demo test check bench bench-disk bench-vm bench-containers fuzz soak asan tsan format clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 25

setup: ## install every Debian package needed (the other targets do so by themselves)
	@scripts/setup

# Called by every target that needs tools: no output and no time when all is there.
.PHONY: ready
ready:
	@scripts/setup --quiet

# $(call configure,PRESET) and $(call build,PRESET,TARGETS); two `make` side by side configure one after the other.
configure = flock build/$(1).configure.lock cmake --preset $(1) $(CMAKE_OPTIONS) > build/$(1).configure.log 2>&1 || \
	{ cat build/$(1).configure.log; exit 1; }
define build
	@$(call configure,$(1))
	@cmake --build build/$(1) -j $(JOBS) --target $(2)
endef

build: ready | build/ ## build/dev/berth (PRESET=release: build/release/berth)
	$(call build,$(PRESET),berth)

deb: ready | build/ ## the Debian package, release build: build/deb/berth_VERSION_amd64.deb
	$(call build,release,installed)
	@packaging/build-deb build/release build/deb

demo: ready | build/ ## a real guest on a Berth disk: checkpoint, reference point, incremental export, restore
	$(call build,$(PRESET),berth)
	@test -x scripts/demo || { echo 'demo: scripts/demo does not exist yet'; exit 1; }
	@BERTH_BIN=$(CURDIR)/build/$(PRESET)/berth scripts/demo

test: ready | build/ ## build everything and run every test
	$(call build,$(PRESET),all)
	@scripts/run_tests.py build/$(PRESET)

check: ready | build/ ## format, headers, include table, clang-tidy, shellcheck, links, figures
	@$(call configure,dev)
	@scripts/check

bench: ready | build/ ## micro-benchmarks, release build
	$(call build,release,benchmarks)
	@scripts/bench build/release

bench-disk: ready | build/ ## disk benchmarks beside qemu-storage-daemon and the raw file, release build
	$(call build,release,berth benchmarks)
	@test -e bench/disk.py || { echo 'bench-disk: bench/disk.py does not exist yet'; exit 1; }
	@BERTH_BIN=$(CURDIR)/build/release/berth /usr/bin/python3 bench/disk.py

bench-vm: ready | build/ ## what checkpoints cost a guest, beside QEMU's own snapshots, release build
	$(call build,release,installed)
	@BERTH_BIN=$(CURDIR)/build/release/berth /usr/bin/python3 bench/vm.py

bench-containers: ready | build/ ## containers from nothing and from templates, paused at each level, beside runc, release build
	$(call build,release,installed)
	@BERTH_BIN=$(CURDIR)/build/release/berth /usr/bin/python3 bench/containers.py

fuzz: ready | build/ ## every fuzz target for FUZZ_SECONDS=60
	$(call build,fuzz,fuzzers)
	@scripts/fuzz build/fuzz $(FUZZ_SECONDS)

soak: ready | build/ ## simulations for SOAK_RUNS=1000000 runs each; then guests: SOAK_CHECKPOINTS=50, SOAK_SECONDS=3600, SOAK_CONTAINERS=1000
	$(call build,release,simulations berth installed)
	@scripts/soak build/release $(SOAK_RUNS) $(SOAK_CHECKPOINTS) $(SOAK_SECONDS) $(SOAK_CONTAINERS)

asan: ready | build/ ## unit, simulation and corpus tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(call build,asan,all)
	@scripts/run_tests.py build/asan -LE '^e2e$$'

tsan: ready | build/ ## unit tests with ThreadSanitizer
	$(call build,tsan,all)
	@scripts/run_tests.py build/tsan -L '^unit$$'

format: ready ## clang-format over all sources
	@scripts/sources | xargs clang-format-19 -i

clean: ## remove what was built with the presets
	rm -rf build/dev build/release build/asan build/tsan build/fuzz build/check build/deb build/*.configure.log build/*.configure.lock build/check.log

build/:
	@mkdir -p $@
