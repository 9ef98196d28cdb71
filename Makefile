# Everything a developer or a newcomer runs; `make` alone lists it.
# `make run` and `make test` install what they lack, or name the command that does.

CARGO ?= cargo
# More arguments for the program that a target runs: make run ARGS="--port 9000 --speed 10"
ARGS ?=
# What `make simulate` plays through.
SEEDS ?= 0..10000
# rustup's cargo is found even before a new login has put it on the path.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help
.PHONY: help run test soak simulate lint fmt bench fuzz deny sbom release testssl check-tools

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: check-tools ## Build, then run three simulated ComfyUI servers and a gateway on port 8100
	$(CARGO) run --locked -- demo $(ARGS)

test: lint ## The whole suite: format, lints, unit, integration and documentation tests
	$(CARGO) test --locked $(ARGS)

# Longer: make soak SECONDS=1800; other faults: COMFYGATE_SEED=1 make soak
SECONDS ?= 120
soak: check-tools ## Two minutes of faults under load, both modes (make test has half a minute)
	COMFYGATE_SOAK_SECONDS=$(SECONDS) $(CARGO) test --locked --test suite -- soak --nocapture

simulate: check-tools ## The scheduler against 10,000 seeded worlds (SEEDS=FROM..TO for others)
	COMFYGATE_SIM_SEEDS=$(SEEDS) $(CARGO) test --locked --config 'profile.dev.package.comfygate.opt-level=1' \
		--lib pool::core::simulation -- --nocapture

lint: check-tools ## Format, clippy and documentation links, without changing anything
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet

fmt: ## Format the code
	$(CARGO) fmt

bench: check-tools ## Micro benchmarks (an optimised build: takes minutes the first time)
	$(CARGO) bench --locked --bench micro --bench journal -- $(ARGS)

fuzz: ## Fuzz the parsers: ARGS="--time 600 head frames", every target for a minute by default
	tools/fuzz.sh $(ARGS)

deny: ## Licences, sources and advisories of everything in the program, by deny.toml
	@tools/supply-chain.sh deny

sbom: ## List everything in the program: target/sbom/comfygate.cdx.json
	@tools/supply-chain.sh sbom

release: check-tools sbom ## The optimised program with its list of parts
	$(CARGO) build --locked --release

testssl: check-tools ## Have testssl.sh look for weaknesses in what https serves
	$(CARGO) build --locked
	tests/testssl.sh

check-tools: ## Install what building needs and the machine lacks, or name it
	@tools/check-tools.sh
