package proc

import (
	"fmt"
	"os"
)

// File descriptors of a child.
const (
	LifelineFD   = 3 // the read end of a pipe that ends with the supervisor
	FirstExtraFD = 4 // the first of Spec.ExtraFiles
)

// WatchLifeline ends this process, with status 1, as soon as the supervisor
// that started it through [Start] is gone. The descriptor is LifelineFD. It is
// an error if that is not a pipe: then nobody supervises this process.
func WatchLifeline(fd uintptr) error {
	file := os.NewFile(fd, "lifeline")
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("lifeline: %w", err)
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		return fmt.Errorf("lifeline: descriptor %d is not a pipe; this process has to be started by a supervisor", fd)
	}
	go func() {
		_, _ = file.Read(make([]byte, 1)) // nothing is ever written: any return is the end
		os.Exit(1)
	}()
	return nil
}
