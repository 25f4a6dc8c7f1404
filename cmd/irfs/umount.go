package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
	pid, found := serverByConnection(dir)
	if !found {
		pid = serverByItself(dir)
	}
	if pid == 0 {
		return -1
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	return fd
}

// serverByConnection finds the process with the name of this program that has the connection of a mount open (Linux 6.10 tells
// in fdinfo); pid is 0 if that is stopped, and will not end. It asks nothing of the mount: a process that stopped while it had a
// question would hold up this one, even when that is killed.
func serverByConnection(dir string) (pid int, found bool) {
	number, err := irfs.Connection(dir)
	name, nameErr := os.ReadFile("/proc/self/comm")
	if err != nil || nameErr != nil {
		return 0, false
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, comm := range processes {
		if text, _ := os.ReadFile(comm); !bytes.Equal(text, name) {
			continue
		}
		process := filepath.Dir(comm)
		files, _ := filepath.Glob(process + "/fd/*")
		for _, file := range files {
			if to, _ := os.Readlink(file); to != "/dev/fuse" {
				continue
			}
			info, _ := os.ReadFile(filepath.Join(process, "fdinfo", filepath.Base(file)))
			_, after, _ := bytes.Cut(info, []byte("\nfuse_connection:"))
			var n uint32
			if _, err := fmt.Sscan(string(after), &n); err != nil || n != number {
				continue
			}
			stat, _ := os.ReadFile(process + "/stat")
			if _, state, _ := bytes.Cut(stat, []byte(") ")); bytes.HasPrefix(state, []byte("T")) {
				return 0, true
			}
			pid, err := strconv.Atoi(filepath.Base(process))
			return pid, err == nil
		}
	}
	return 0, false
}

// serverByItself asks the mount.
func serverByItself(dir string) (pid int) {
	answer := make(chan []byte, 1)
	go func() {
		text, _ := os.ReadFile(filepath.Join(dir, ".irfs/version"))
		answer <- text
	}()
	select {
	case text := <-answer:
		for line := range bytes.Lines(text) {
			fmt.Sscanf(string(line), "pid %d\n", &pid)
		}
	case <-time.After(time.Second):
	}
	return pid
}
