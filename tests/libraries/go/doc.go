// Package libraries pins the libraries of receivers in Go, which tests verify deliveries with.
package libraries

import (
	_ "github.com/google/go-github/v64/github"
	_ "github.com/standard-webhooks/standard-webhooks/libraries/go"
)
