// Models how other systems handle a request: the check of Flux's generic-hmac Receiver and Tekton's GitHub interceptor,
// with the library that both use, and the event that the webhook source of Argo Events creates.
package main

import (
	"encoding/json"
	"net/http"
	"os"

	"github.com/google/go-github/v64/github"
)

type payload struct {
	Header http.Header      `json:"header"`
	Body   *json.RawMessage `json:"body"`
}

func main() {
	var cases []struct {
		Body, Header, Secret string
		Headers              map[string]string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	type answer struct {
		Valid bool   `json:"valid"`
		Argo  string `json:"argo"`
	}
	answers := []answer{}
	for _, c := range cases {
		headers := http.Header{}
		for name, value := range c.Headers {
			headers.Set(name, value)
		}
		body := json.RawMessage(c.Body)
		event, err := json.Marshal(payload{headers, &body})
		if err != nil {
			panic(err)
		}
		err = github.ValidateSignature(headers.Get(c.Header), []byte(c.Body), []byte(c.Secret))
		answers = append(answers, answer{err == nil, string(event)})
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
