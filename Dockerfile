# A static binary and the CAs that it trusts:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example.com/platform/llmtune-webhooks:0.1.0 --push .
FROM --platform=$BUILDPLATFORM rust:1.95.0-slim-bookworm AS build
SHELL ["/bin/sh", "-ec"]
ARG TARGETARCH
# What .cargo/config.toml compiles C with. Versions are those of the release of Debian that the image names.
# hadolint ignore=DL3008
RUN dpkg --add-architecture "$TARGETARCH"; \
    apt-get update; \
    apt-get install --yes --no-install-recommends ca-certificates clang "musl-dev:$TARGETARCH"; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    case $TARGETARCH in \
      amd64) target=x86_64-unknown-linux-musl ;; \
      arm64) target=aarch64-unknown-linux-musl ;; \
      *) echo "no target for $TARGETARCH: build for amd64 or arm64" >&2; exit 1 ;; \
    esac; \
    rustup target add "$target"; \
    cargo build --profile image --locked --target "$target" --bin llmtune-webhooks; \
    cp "target/$target/image/llmtune-webhooks" /

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /llmtune-webhooks /llmtune-webhooks
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/llmtune-webhooks"]
CMD ["run"]
