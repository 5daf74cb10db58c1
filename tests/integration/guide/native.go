package main

import (
	"encoding/json"
	"os"
)

func main() {
	var cases []struct {
		Body, Header, Secret string
		Headers              map[string]string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	verdicts := []bool{}
	for _, c := range cases {
		verdicts = append(verdicts, verify([]byte(c.Body), c.Headers[c.Header], []byte(c.Secret)))
	}
	json.NewEncoder(os.Stdout).Encode(verdicts)
}
