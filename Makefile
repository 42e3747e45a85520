# make demo: a picture. make test: all tests. Both set up what they need. docs/operations.md has the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The lock file's Go, and nothing from the network.
GO := GOTOOLCHAIN=local GOPROXY=off GOFLAGS=-mod=mod CGO_ENABLED=1 $(CURDIR)/$(BIN)/go
# Two files of tests at a time: most of them wait for torch to be imported. Those of faults run alone, since their
# daemons have short deadlines.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
SYSTEM_PACKAGES := gcc libcap-dev libseccomp2 python3-dev python3-venv
MAC_PACKAGES := apparmor checkpolicy policycoreutils python3-setools selinux-policy-default selinux-policy-dev \
	selinux-utils semodule-utils setools

.PHONY: demo test test-fast lint bench fuzz soak mac-test train-demo-model lock packages package-test vm-test release clean

demo: $(READY)
	./scripts/demo.sh $(BIN)

test: $(READY)
	$(PYTEST) --ignore=tests/faults
	$(BIN)/python -m pytest tests/faults
	cd clients/go && $(GO) vet ./... && $(GO) test -race ./...

# In a few minutes: without attacks and faults.
test-fast: $(READY)
	$(PYTEST) tests/unit tests/integration

lint: $(READY)
	test -z "$$($$($(GO) env GOROOT)/bin/gofmt -l clients/go | tee /dev/stderr)"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.run

# make fuzz SECONDS=3600 for all targets together; else two minutes.
fuzz: $(READY)
	$(BIN)/python -m fuzz.run $(if $(SECONDS),--seconds $(SECONDS))

# make soak SECONDS=60 for less than ten minutes.
soak: $(READY)
	$(BIN)/python -m tests.faults.soak $(if $(SECONDS),--seconds $(SECONDS))

# make packages PACKAGES=weave-compute for one of them; docs/operations.md, "Packages".
PACKAGES ?= weave-compute weave-compute-torch weave-compute-model-shapes
packages: $(READY)
	./scripts/system-packages.sh $(SYSTEM_PACKAGES) selinux-policy-dev
	$(BIN)/python scripts/packages.py $(PACKAGES)

# On Debian 12 as root, with what `make packages` has made.
package-test: $(READY)
	./scripts/system-packages.sh mmdebstrap rpm systemd
	$(BIN)/python -m pytest --timeout=1800 tests/packages

# AppArmor's and SELinux's policies, against Debian's: nothing is loaded into this machine's kernel.
mac-test: $(READY)
	./scripts/system-packages.sh $(MAC_PACKAGES)
	$(BIN)/python -m pytest tests/mac

# Boots two virtual machines of Debian, with AppArmor and with SELinux, and installs the packages there. ACCEL=kvm where
# KVM works; without, it takes some twenty minutes. torch's package is made where there is none.
vm-test: $(READY)
	./scripts/system-packages.sh $(SYSTEM_PACKAGES) e2fsprogs mmdebstrap policycoreutils qemu-system-x86 rpm selinux-policy-dev
	$(BIN)/python scripts/packages.py weave-compute weave-compute-model-shapes
	test -n "$$(ls packages/weave-compute-torch-*.deb)" || $(BIN)/python scripts/packages.py weave-compute-torch
	$(PYTEST) --timeout=2400 -rA tests/vm

# All that a release must pass: more than fits beside each change.
release: lint test mac-test packages package-test vm-test

train-demo-model: $(READY)
	$(BIN)/python -m training.shapes.train --output models/shapes

# torch comes by version alone: which of its builds (CPU, CUDA, ROCm) is right differs from machine to machine.
$(READY): requirements.lock pyproject.toml
	./scripts/system-packages.sh $(SYSTEM_PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet "$$(cat requirements-torch.txt)"
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# After a change of dependencies in pyproject.toml.
lock: $(READY)
	$(BIN)/python scripts/lock.py

clean:
	rm -rf $(VENV) packages .cache
