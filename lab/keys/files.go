package keys

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// Files are the contents of the key files of an API server that signs tokens by
// itself.
type Files struct {
	SigningKey []byte   // PKCS #8 in PEM, for --service-account-signing-key-file; a secret
	PublicKeys [][]byte // PKIX in PEM, oldest first, one for each --service-account-key-file; that of SigningKey is among them
	KeyIDs     []string // of PublicKeys, as kube-apiserver will publish them
}

// Files returns what an API server needs in order to sign with the signing key
// and to publish every key of the set.
func (s *Set) Files() (Files, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return filesOf(s.keys)
}

func filesOf(entries []*entry) (Files, error) {
	var files Files
	for _, e := range entries {
		if e.State == Removed {
			continue
		}
		public, err := publicPEM(e.Public)
		if err != nil {
			return Files{}, err
		}
		files.PublicKeys = append(files.PublicKeys, public)
		files.KeyIDs = append(files.KeyIDs, e.ID)
		if e.State != Signing {
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(e.private)
		if err != nil {
			return Files{}, fmt.Errorf("keys: %s: %w", e.ID, err)
		}
		files.SigningKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	return files, nil
}
