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
//	IRFS_READERS=2000 go test -v -run ReadersAgree ./faults
//
// has each do all that it can, the second attacks every system call once, the third goes on for
// ten minutes, and the fourth words 2000 layouts for the parsers and a tenth of that for the tools (200 and 20 by
// default; all that it can is 5000 and 300).
package faults
