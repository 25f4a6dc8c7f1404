package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	irfs "irfs/fs"
)

// umountWait is how long umount waits for the mount's process to end, in
// milliseconds: whoever unmounts wants nothing of it to be left.
const umountWait = 5000

func runUmount(c *command, args []string) error {
	flags := newFlags(c)
	lazy := flags.BoolP("lazy", "l", false, "take it out of sight at once, even if somebody uses it")
	if err := c.parse(flags, args, 1, 1); err != nil {
		return err
	}
	dir, err := irfs.FindMount(flags.Arg(0))
	if err != nil {
		return err
	}
	if *lazy {
		return irfs.Unmount(dir, true)
	}
	server := serverOf(dir)
	defer unix.Close(server)
	err = irfs.Unmount(dir, false)
	if errors.Is(err, syscall.EBUSY) {
		return &irfs.Hint{Err: err, Text: "somebody uses it: fuser -vm " + dir + " tells who; irfs umount -l does it all the same"}
	}
	if err == nil && server >= 0 {
		unix.Poll([]unix.PollFd{{Fd: int32(server), Events: unix.POLLIN}}, umountWait)
	}
	return err
}

// serverOf gives a pidfd of the process that serves a mount, or -1. It does not
// wait for a process that does not answer.
func serverOf(dir string) int {
	answer := make(chan []byte, 1)
	go func() {
		text, _ := os.ReadFile(filepath.Join(dir, ".irfs/version"))
		answer <- text
	}()
	var text []byte
	select {
	case text = <-answer:
	case <-time.After(time.Second):
	}
	for line := range bytes.Lines(text) {
		var pid int
		if _, err := fmt.Sscanf(string(line), "pid %d\n", &pid); err == nil {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				return fd
			}
		}
	}
	return -1
}
