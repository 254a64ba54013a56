// Package deps pins modules that packages under construction will import.
package deps

import (
)
