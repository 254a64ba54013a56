// Package deps pins modules that packages under construction will import.
package deps

import (
	_ "github.com/testcontainers/testcontainers-go"
)
