// Package faults attacks irfs, and has nothing but tests: programs that are
// killed at every system call, disks that lose power, calls that fail, hostile
// layouts and archives, many at once, users who want more than they may. What
// has to happen, and which test shows it, is in docs/FAULTS.md.
//
// The tests run the real program, on real mounts. By default each is short; with
//
//	IRFS_FAULTS=full go test -timeout 3h ./faults
//
// each does all that it can. IRFS_SOAK=10m go test -run Soak ./faults is the soak.
package faults
