// Package fs is what a mount of an Image Registry looks like.
//
// # The tree
//
//	MNT/
//	  .irfs/                     the mount itself (opens by name, is not listed)
//	    version                  lines `key value`: version, registry, directory, pid, passthrough, readonly, remembers
//	    log                      the last 256 operations of each user: time, uid, operation, path, outcome
//	    ca/<fingerprint>.pub     the root CAs that are trusted
//	  import/                    an archive that is written here becomes an app; import/library/x.tar the app library/x
//	    .done/<app>.txt          a line for each image that came: app, tag, digest (not listed)
//	  <app>/                     `nginx`, or nested: `library/nginx`
//	    oci-layout  index.json  blobs/<algorithm>/<hex>     the layout, byte for byte
//	    tags/<tag>/              the image or index that the tag names now
//	    manifests/sha256-<hex>/  every image and index of the app (`sha256:<hex>` opens it too)
//	    .irfs/check              `ok (layers not read)`, or a line for each thing wrong with the app (not listed)
//
// and in an image directory, below tags/ or manifests/:
//
//	verify                   one status word (package sign) and a newline
//	verify-full              the same, after reading every layer (not listed)
//	reason                   a line for each check and what it found; of verify-full once that is known
//	status.json              for programs: the word of verify, whatever was read before, and the state of the layers, of the
//	                         last verify-full that still holds
//	status-full.json         the same with the word of verify-full; opening it reads every layer (not listed)
//	digest                   sha256:<hex>
//	manifest.json            the manifest's or index's own bytes
//	config.json              the config's own bytes; not for an index
//	signature  vendor.pub  vendor.pub.sig   DER, as decoded from the annotations; not if unsigned
//	sign                     the control file
//	platforms/<os>-<arch>[-<variant>]/      an image directory for each platform
//
// # Three layers
//
// A [Tree] is the tree as data: what is at a path, a directory with names or a
// file with bytes, computed when it is asked for (tree.go, image.go). It knows
// nothing of FUSE: `irfs cat` and `ls` print it. The nodes (node.go, drop.go)
// show it to the kernel. A write to a control file (control.go) goes the other
// way: words → keys, read with the caller's own rights (caller.go) → package
// sign. Errors become errno in one table (errno.go), and words in the log (log.go).
//
// # No cache is ever stale
//
// An inode's content never changes: an inode stands for a path and for what is there, so another content is another inode. (Their number is the
// same, a keyed hash of the path; a hash of the content is their generation.) Every open(2) computes what is at
// the path now, which is a few calls of stat(2) if nothing changed, and their times prove that (package layout, "Remembering"); if that is
// not what the inode shows, the answer is ESTALE, and the kernel walks the path
// again by itself and gets the new inode. So the kernel may keep every page of every
// inode, and an open never lags behind the registry. stat(2) may lag by one
// second, but not behind a change made through this mount: the attributes of what a
// signing changed are expired before its write returns, and the kernel asks for those that are at the path now.
// If somebody has such a file open, the write takes up to a second more: an open inode has its own attributes, and the kernel may take the
// name for it for so long. Names are not expired, for that waits for who reads the directory.
//
// # What a directory shows
//
// The kernel asks for rights by what it looked up, and may know that for a second. So a directory here stands for the directory of the registry
// that was looked up, and not for its name (place, in tree.go): once the name leads to another one, everything in it is ESTALE, and the kernel walks the
// path again, with the rights that hold there. A shell that stands in it has to go there again.
//
// # The drop folder
//
// What is written into import/ is taken in while it arrives (layout.Arrival), and
// published by the close that follows its end, which returns how that went
// (dropfile.go). A close that comes earlier is an error for the process that opened the file,
// and nothing for a child that had a copy of it. Names with a leading dot are published by
// the rename that takes the dot away. One open handle writes an archive, and it is
// imported with the rights that its opener had when he opened it, whoever closes it.
//
// # The control file
//
// One write(2) to `sign` is one command, of at most 4096 bytes: a private key itself
// (DER or PEM), or flags of sign-image (-v -s -c -x), or else the path of the
// vendor's private key. It has been carried out, durably, when the write returns,
// or the write fails. Reading gives the outcome of the last command for this
// image. What is signed is what was opened: if another image came to its place
// since, the answer is ESTALE; if somebody else signed it, it goes on.
package fs
