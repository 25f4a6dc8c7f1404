package fs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// patient gives a context that ends when ctx does, but not because of a signal
// that would not have ended the caller: a shell whose background job ends gets
// SIGCHLD, and that is no reason to fail its write. The kernel tells only of the first
// signal (FUSE_INTERRUPT), so after it the caller is looked at from time to time.
// stop has to be called.
func patient(ctx context.Context, pid uint32) (_ context.Context, stop func()) {
	return until(ctx, func() bool { return interrupted(pid, false) })
}

// steadfast is patient for what cannot be done again: only the caller's death ends
// it, and nobody looks for that before it has taken a while.
func steadfast(ctx context.Context, pid uint32) (_ context.Context, stop func()) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	late := time.AfterFunc(50*time.Millisecond, func() {
		waiting, stop := until(ctx, func() bool { return interrupted(pid, true) })
		defer stop()
		select {
		case <-waiting.Done():
			cancel()
		case <-out.Done():
		}
	})
	return out, func() {
		late.Stop()
		cancel()
	}
}

// until gives a context that ends once ctx has and over says so.
func until(ctx context.Context, over func() bool) (_ context.Context, stop func()) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
		case <-out.Done():
			return
		}
		for !over() {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-out.Done():
				return
			}
		}
		cancel()
	}()
	return out, func() {
		cancel()
		<-done
	}
}

// idle are the signals that end nothing by default (signal(7)): they do nothing, or stop the
// process, as Ctrl-Z does, which goes on later with what it did.
const idle = 1<<(syscall.SIGCHLD-1) | 1<<(syscall.SIGURG-1) | 1<<(syscall.SIGWINCH-1) | 1<<(syscall.SIGCONT-1) |
	1<<(syscall.SIGSTOP-1) | 1<<(syscall.SIGTSTP-1) | 1<<(syscall.SIGTTIN-1) | 1<<(syscall.SIGTTOU-1)

// interrupted says whether a signal waits for a thread that it would not sleep
// through, or the thread is gone. With deadly, one that it catches does not count.
func interrupted(thread uint32, deadly bool) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil || thread == 0 {
		return true
	}
	sets := map[string]uint64{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt":
			var set uint64
			fmt.Sscanf(value, "%x", &set)
			sets[name] = set
		}
	}
	waiting := (sets["SigPnd"] | sets["ShdPnd"]) &^ (sets["SigBlk"] | sets["SigIgn"] | idle)
	if deadly {
		waiting &^= sets["SigCgt"]
	}
	return waiting != 0
}
