// Irfs shows an Image Registry as a filesystem: trust becomes a file that any
// program can read, signing becomes a write, importing a copy. The same work
// is there as commands, with the flags of ir-sign.
//
//	irfs mount [-c ROOT-CA.PUB]... [-s VENDOR.PUB.SIG] [--sign-imports FLAGS] [-f] [-o OPTIONS] REGISTRY MNT
//	irfs umount [-l] MNT
//
//	irfs gen-key            -o VENDOR.PRV
//	irfs extract-public     -i VENDOR.PRV -o VENDOR.PUB
//	irfs sign               -k KEY.PRV -f FILE -s FILE.SIG
//	irfs verify             -k KEY.PUB -f FILE -s FILE.SIG
//	irfs sign-image         -r REGISTRY -a APP -d REFERENCE -v VENDOR.PRV KEYS
//	irfs extract-sign-image -r REGISTRY -f FILE|- [-a APP] [-d REFERENCE] [--on-exist add|merge|fail] [--keep-all] [--compress] -v VENDOR.PRV KEYS
//	irfs import             -r REGISTRY [-a APP] [--on-exist add|merge|fail] [--keep-all] [--compress] FILE|-
//	irfs verify-image       -r REGISTRY -a APP -d REFERENCE -c ROOT-CA.PUB [--full] [--json]
//	irfs status             [-r REGISTRY | MNT] [-c ROOT-CA.PUB]... [--full] [--json] [--only WORD,...] [--check]
//	irfs ls                 -r REGISTRY [-c ROOT-CA.PUB]... [PATH]
//	irfs cat                -r REGISTRY [-c ROOT-CA.PUB]... PATH...
//	irfs gc                 -r REGISTRY [-a APP] [--grace 14d] [--dry-run]
//	irfs demo | version | help | completion
//
// KEYS is either -s VENDOR.PUB.SIG -c ROOT-CA.PUB, the vendor's way, with the
// certificate that the root CA made of his public key (irfs sign -k ROOT-CA.PRV -f
// VENDOR.PUB -s VENDOR.PUB.SIG); or -x ROOT-CA.PRV, for who has both keys.
// `status --check` ends with 0 only if there is an app, everything was looked at (no app is hidden,
// no directory unreadable), and all images are verified, also those that --only leaves out; otherwise with the
// exit code of the worst word, or 1. Artifacts that are intact do not count. REFERENCE is a tag, or a digest sha256:<hex> or sha512:<hex>.
//
// `irfs REGISTRY MNT -o OPTIONS` is short for `irfs mount`, so that mount(8) and
// fstab can call it. OPTIONS are ca_pub=, vendor_pub_signature=, ro,
// allow_other, nonempty, on_exist= and sign_imports=. `mount` returns when the mount is ready; SIGTERM to its process
// unmounts it if nobody uses it, a second one in any case.
//
// What a mount shows is in the documentation of package fs, what is checked
// in that of package sign, and what is promised on disk in that of package layout.
//
// Exit codes: 0 done; 1 failed; 2 wrong usage; and for the status of an
// image 3 unsigned, 4 untrusted, 5 invalid, 6 corrupt, 7 unknown.
package main
