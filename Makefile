.DEFAULT_GOAL := help
.PHONY: help demo test lint advisories fuzz generate image-check bench

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Watch the operator at work on a real control plane; KEEP=1 leaves it running
	@for tool in cargo cc go node; do \
	  command -v $$tool >/dev/null || { echo "make demo needs Rust, a C compiler, Go and Node; $$tool is not in PATH" >&2; exit 1; }; \
	done
	cargo build --workspace --locked --bin llmtune-webhooks --bin demo
	tests/control-plane/build etcd kube-apiserver kubectl >/dev/null
	@$${CARGO_TARGET_DIR:-target}/debug/demo $(if $(KEEP),--keep)

# Most tests wait most of the time, for leases, retries and flushes: five at once keep two cores busy.
test: ## Run the whole suite, against a real control plane that is built where it is missing
	tests/control-plane/build etcd kube-apiserver kubectl kube-controller-manager kube-scheduler kwok helm prometheus promtool gitops-health cel-oracle >/dev/null
	tests/libraries/install javascript >/dev/null
	tests/libraries/install python >/dev/null
	tests/libraries/install browser >/dev/null
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-5} cargo test --workspace --locked

lint: ## Check formatting, clippy, dependencies, words
	cargo fmt --all --check
	tests/style
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo check --package llmtune-webhooks-api --locked
	tests/cargo-deny check bans licenses sources
	tests/hadolint Dockerfile

advisories: ## Check dependencies against RustSec's advisories, which are read from GitHub
	tests/cargo-deny check advisories

fuzz: ## Fuzz what reads what others send, by a nightly compiler; FUZZ="600 ledger watch" says for how long and what
	tests/fuzz/run $(FUZZ)

generate: ## Generate crds/ from the types, and the files derived from them in docs/ and charts/
	cargo run --quiet --bin llmtune-webhooks -- crds > crds/llmtune.io.yaml
	cargo run --quiet --package llmtune-webhooks-harness --bin reference < crds/llmtune.io.yaml > docs/api.md
	charts/generate

image-check: ## Build what the image holds and run it as containers do; EMULATOR=FILE, of user-mode qemu, runs arm64's
	rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl
	cargo build --profile image --locked --target x86_64-unknown-linux-musl --target aarch64-unknown-linux-musl --bin llmtune-webhooks
	cargo build --workspace --locked --bin image
	tests/control-plane/build etcd kube-apiserver kubectl >/dev/null
	@target=$${CARGO_TARGET_DIR:-target}; \
	  $$target/debug/image $$target/x86_64-unknown-linux-musl/image/llmtune-webhooks && \
	  $$target/debug/image $$target/aarch64-unknown-linux-musl/image/llmtune-webhooks $(EMULATOR)

bench: ## Measure the figures and write docs/performance.md; BENCH=--help lists the options
	cargo build --release --workspace --bins --locked
	cargo bench --package llmtune-webhooks-micro --no-run --locked
	"$${CARGO_TARGET_DIR:-target}/release/bench" $(BENCH)
