module llmtune.io/webhooks/tests/control-plane/prometheus-operator

go 1.26.0

// Nothing of it is built: its custom resource definitions are read.
require github.com/prometheus-operator/prometheus-operator v0.85.0
