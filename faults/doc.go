// Package faults attacks irfs, and has nothing but tests: programs that are
// killed at every system call, disks that lose power, calls that fail, hostile
// layouts and archives, many at once, users who want more than they may. What
// has to happen, and which test shows it, is in docs/FAULTS.md.
//
// The tests run the real program, on real mounts. By default each is short; the first of
//
//	IRFS_FAULTS=full go test -timeout 3h ./faults
//	IRFS_FAULTS=calls go test -run 'Kill|Errors' ./faults
//	IRFS_SOAK=10m go test -v -timeout 20m -run Soak ./faults
//
// has each do all that it can, the second attacks every system call once, and the third goes on for
// ten minutes.
package faults
