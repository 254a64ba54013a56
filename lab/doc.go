// Package lab brings up and holds one lab: clusters that are OIDC issuers, the
// front that publishes their documents, the relying parties that trust them,
// and Vault.
//
// A token makes one journey through it, in one direction:
//
//	cluster ──► signer ──► relying party ──► checks ──► grant ──► use
//	                            │
//	                            └─ GET discovery, GET JWKS ──► issuer front ──► cluster
//
// The only arrow back is the key fetch, and it goes over real HTTPS, because
// that hop is what federation is. Every station writes to the trace.
//
// The context of [Up] bounds the start only and does not replace [Lab.Down],
// which may be called in any phase and again.
package lab
