package fs

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"irfs/layout"
	"irfs/sign"
)

// Kinds of error that only a mount has.
var (
	errCommand = errors.New("malformed command")
	errNoKey   = errors.New("no key")
	errStale   = errors.New("stale")
	errCaller  = errors.New("another user")
)

// fault is an error whose text is a sentence, and whose kind decides its errno.
type fault struct {
	kind error
	text string
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.kind }

// errnos is the one table from the project's errors to what a caller gets.
// The first row that fits counts.
var errnos = []struct {
	kind  error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.EINTR},
	{errCommand, syscall.EINVAL},
	{errCaller, syscall.EPERM},
	{errView, syscall.EACCES},
	{errNoKey, syscall.ENOKEY},
	{errStale, syscall.ESTALE},
	{sign.ErrImage, syscall.EINVAL},
	{sign.ErrKey, syscall.EKEYREJECTED},
	{sign.ErrSignature, syscall.EKEYREJECTED},
	{sign.ErrMismatch, syscall.EKEYREJECTED},
	{sign.ErrUntrusted, syscall.EKEYREJECTED},
	{layout.ErrMoved, syscall.ESTALE},
	{layout.ErrBusy, syscall.EBUSY},
	{layout.ErrExist, syscall.EEXIST},
	{layout.ErrRewritten, syscall.EINVAL},
	{layout.ErrName, syscall.EINVAL},
	{layout.ErrLimit, syscall.EFBIG},
	{layout.ErrCorrupt, syscall.EBADMSG},
	{layout.ErrNotFound, syscall.ENOENT},
}

// errnoOf gives the errno for an error: the table's, or the system's own;
// EIO for anything unforeseen.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, row := range errnos {
		if errors.Is(err, row.kind) {
			return row.errno
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	if errors.Is(err, fs.ErrNotExist) {
		return syscall.ENOENT
	}
	return syscall.EIO
}
