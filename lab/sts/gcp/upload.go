package gcp

import (
	"encoding/json"
	"errors"
	"slices"
)

// checkUpload checks what the vendor checks of an uploaded key set beyond its
// being one: keys have the members that are documented and no others, x5c and
// x5t in particular (IAM documentation, "Troubleshoot Workload Identity
// Federation").
func checkUpload(jwks []byte) error {
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	known := []string{"kty", "alg", "use", "kid", "n", "e", "x", "y", "crv"}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return errors.New("Input JWK is not in a valid json format: " + err.Error())
	}
	for _, key := range set.Keys {
		for member := range key {
			if !slices.Contains(known, member) {
				return errors.New("Input JWK is not in a valid json format: member " + member + " is not supported")
			}
		}
	}
	return nil
}
