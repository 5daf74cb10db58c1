module receiver

go 1.24

require (
	github.com/google/go-github/v64 v64.0.0
	github.com/standard-webhooks/standard-webhooks/libraries v0.0.1
)

require github.com/google/go-querystring v1.1.0 // indirect
