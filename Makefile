# make demo: an image. make test: all tests. Both set up what they need. README.md, "Development", lists the other targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Go from the lock file; it downloads nothing.
GO := GOTOOLCHAIN=local GOPROXY=off GOFLAGS=-mod=mod CGO_ENABLED=1 $(CURDIR)/$(BIN)/go
# Four tests at a time, for two cores: half of the time they wait. A pytest worker that runs out of tests takes over some
# of the others'. tests/faults runs separately, one test at a time, since its daemons have short deadlines.
PYTEST := $(BIN)/python -m pytest -n 4 --dist worksteal
SYSTEM_PACKAGES := gcc libcap-dev libseccomp2 python3-dev python3-venv
# Shells whose completions are tested; without them these tests are skipped.
TEST_PACKAGES := fish zsh
MAC_PACKAGES := apparmor checkpolicy policycoreutils python3-setools selinux-policy-default selinux-policy-dev \
	selinux-utils semodule-utils setools

.PHONY: demo test test-python test-go test-fast test-user-mode test-as-user gpu-test try lint bench fuzz soak mac-test train-demo-model lock \
	packages package-test vm-test gpu-kit gpu-kit-test release clean

demo: $(READY)
	./scripts/demo.sh $(BIN)

test: test-python test-go

test-python: $(READY)
	test "$$(id -u)" -ne 0 || ./scripts/system-packages.sh $(TEST_PACKAGES)
	$(PYTEST) --ignore=tests/faults
	$(BIN)/python -m pytest tests/faults

test-go: $(READY)
	cd clients/go && $(GO) vet ./... && $(GO) test -race ./...

# Sweeps over models and libraries, which take minutes.
SWEEPS := $(addprefix tests/integration/test_,same_as_diffusers.py schedulers.py loading.py jobs_apart.py families.py \
	new_family.py tokens.py libraries_lacking.py)

# Takes a few minutes: without attacks, faults and sweeps.
test-fast: $(READY)
	$(PYTEST) $(addprefix --ignore=,$(SWEEPS)) tests/unit tests/integration

# As root: the demo and tests as an ordinary user who has only the system's Python. Those in which the user matters: folders,
# sockets, signals, sandbox. ALL=1 runs every Python test.
USER_MODE := $(addprefix tests/integration/test_,socket.py start_and_stop.py signals.py readme.py weavectl_add.py) \
	$(addprefix tests/security/test_,attacks.py boundaries.py supervisor.py gpu_start.py)
test-user-mode: $(READY)
	$(PYTEST) $(USER_MODE)

test-as-user: $(READY)
	./scripts/as-user.sh demo $(if $(ALL),test-python,test-user-mode)

# On a GPU; gpu-report/report.txt has the results. REHEARSE=1: on the CPU, without tests that need a card.
gpu-test: $(READY)
	$(BIN)/python -m pytest tests/gpu $(if $(REHEARSE),--without-gpu)

# Runs each of the targets below for a few seconds, so that none breaks unnoticed; tests that need more are only collected.
try: $(READY)
	$(MAKE) demo
	$(MAKE) bench SECONDS=10
	$(MAKE) fuzz SECONDS=20 DISCARD=1
	$(MAKE) soak SECONDS=10
	$(MAKE) lock CHECK=1
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(MAKE) train-demo-model STEPS=3 OUTPUT="$$folder/shapes"
	$(MAKE) packages PACKAGES=weave-compute-model-shapes
	$(MAKE) gpu-kit
	$(BIN)/python -m pytest --collect-only -q tests/gpu tests/kit tests/packages tests/vm

lint: $(READY)
	found=$$($$($(GO) env GOROOT)/bin/gofmt -l clients/go) && echo "$$found" >&2 && test -z "$$found"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# make bench SECONDS=30 for fewer rounds.
bench: $(READY)
	$(BIN)/python -m benchmarks.run $(if $(SECONDS),--seconds $(SECONDS))

# make fuzz SECONDS=3600 for all targets together; two minutes by default. DISCARD=1 leaves the corpus unchanged.
fuzz: $(READY)
	$(BIN)/python -m fuzz.run $(if $(SECONDS),--seconds $(SECONDS)) $(if $(DISCARD),--discard)

# make soak SECONDS=60; ten minutes by default.
soak: $(READY)
	$(BIN)/python -m tests.faults.soak $(if $(SECONDS),--seconds $(SECONDS))

# make packages PACKAGES=weave-compute for one of them; docs/packaging.md has the other variables.
PACKAGES ?= weave-compute weave-compute-torch weave-compute-model-shapes
packages: $(READY)
	./scripts/system-packages.sh $(SYSTEM_PACKAGES) selinux-policy-dev
	$(BIN)/python scripts/packages.py $(PACKAGES)

# On Debian 12 as root, with the packages that `make packages` built.
package-test: $(READY)
	./scripts/system-packages.sh mmdebstrap rpm systemd
	$(BIN)/python -m pytest --timeout=1800 tests/packages

# AppArmor's and SELinux's policies, checked against Debian's: nothing is loaded into this machine's kernel.
mac-test: $(READY)
	./scripts/system-packages.sh $(MAC_PACKAGES)
	$(BIN)/python -m pytest tests/mac

# Boots two virtual machines of Debian, with AppArmor and with SELinux, and installs the packages there. ACCEL=kvm if KVM
# works; without it, some twenty minutes. Builds torch's package if there is none.
vm-test: $(READY)
	./scripts/system-packages.sh $(SYSTEM_PACKAGES) e2fsprogs mmdebstrap policycoreutils qemu-system-x86 rpm selinux-policy-dev
	$(BIN)/python scripts/packages.py weave-compute weave-compute-model-shapes
	test -n "$$(ls packages/weave-compute-torch-*.deb)" || $(BIN)/python scripts/packages.py weave-compute-torch
	$(PYTEST) --timeout=2400 -rA tests/vm

# A folder that tests the daemon on a machine with a GPU; docs/operations.md, "Prove it on your GPU".
gpu-kit: $(READY)
	$(BIN)/python scripts/make_gpu_kit.py

# Rehearses the kit here and on a bare Debian 13 without network. For that it downloads torch with CUDA once, 3 GB.
# KIT_TREE=/path uses another tree, a Debian with torch, and leaves it unchanged.
gpu-kit-test: gpu-kit
	./scripts/system-packages.sh mmdebstrap
	$(BIN)/python -m pytest --timeout=3600 tests/kit

# Everything that a release must pass: too much for every change.
release: ALL := 1
release: lint mac-test test test-as-user try packages package-test vm-test gpu-kit-test

# make train-demo-model STEPS=3 OUTPUT=/tmp/model only shows that it works; all of it takes 2.5 hours on two cores.
train-demo-model: $(READY)
	$(BIN)/python -m training.shapes.train --output $(or $(OUTPUT),models/shapes) \
		$(if $(STEPS),--pictures 64 --autoencoder-steps $(STEPS) --decoder-steps $(STEPS) --text-steps $(STEPS) \
		--unet-steps $(STEPS) --more-unet-steps $(STEPS) --last-unet-steps $(STEPS))

# Build tools come first, so that pip downloads none. torch: the build that pip picks, if it is listed.
$(READY): requirements.lock requirements-build.lock requirements-torch.lock pyproject.toml
	./scripts/system-packages.sh $(SYSTEM_PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements-build.lock
	$(BIN)/pip install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517 -r requirements.lock
	$(BIN)/python scripts/install_torch.py
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q weave  # the daemon's processes write no .pyc files
	touch $@

# After a change of dependencies in pyproject.toml. CHECK=1 only reports whether it is needed.
lock: $(READY)
	$(BIN)/python scripts/lock.py $(if $(CHECK),--check)

clean:
	rm -rf $(VENV) packages gpu-kit gpu-report .cache
