// Package layout reads, checks and changes OCI image layouts on disk. It knows
// nothing of keys, and nothing of FUSE.
//
// # Words
//
// A [Registry] is a directory. Every directory below it that holds a regular
// file `oci-layout` is an [App]: an image layout (OCI image-spec v1.1,
// image-layout.md) whose name is its path below the registry. Apps may lie in
// apps. Names that begin with a dot are never apps, and symbolic links are
// never followed.
//
//	REGISTRY/
//	  library/nginx/              the app library/nginx
//	    oci-layout                {"imageLayoutVersion":"1.0.0"}
//	    index.json                what the app holds: tags, and digests
//	    blobs/sha256/<64 hex>     manifests, indexes, configs, layers
//	    blobs/sha512/<128 hex>
//
// A [Snapshot] is what index.json said at one instant, and an [Entry] is an
// image or index that it reaches, directly or through nested indexes.
//
// # What is checked
//
// The content of a registry is hostile input. A name becomes a path only
// after [ParseDigest], and a path is opened beneath its directory without
// following symbolic links, never waiting, and only if it is a regular file.
// Sizes are compared with the descriptor, and with the limits MaxManifest,
// MaxConfig and MaxIndex, before a byte is read; what was read is
// checked against its digest, and these very bytes are used. Documents are parsed
// strictly: names exactly as specified and no other name that folds to one, no duplicate members, valid UTF-8, nothing behind the
// value, a media type that is the descriptor's, inline data that are the blob's. All descriptors of one digest, in all the indexes of an app, say the
// same of it (wording), and a layer begins as its media type says (layer.go): what two programs could understand in different ways is refused. What fails is [ErrCorrupt], with a
// sentence that says what is wrong with what. A blob that is not there is also
// [ErrMissing], for an index may list images that the layout does not have.
// What the system says (EIO, EACCES …) is passed on as it is, and never
// taken for a statement about the content.
//
// # What is promised on disk
//
// [App.Annotate] sets annotations on manifests, and carries the new digests
// and sizes up through every index to index.json. JSON is spliced, not
// written anew: every byte stays that does not have to change.
//
// At every instant, power loss included, index.json refers only to blobs that
// are complete and right as far as this package wrote them; a change that was
// reported done survives; one that failed before its last step changed nothing
// that can be reached. The order is:
//
//  1. take flock(2) on the app's own oci-layout, waiting at most [LockWait];
//  2. read index.json and what hangs on it, and compute every new blob in memory;
//  3. write each to an unnamed file, fsync it, give it its digest for a name, and
//     fsync the directory. One that is there is hashed before it is trusted;
//  4. write and fsync the new index.json as an unnamed file, make sure that the
//     old one is still what was read, name the new one `.irfs-<random>`, and rename it over the old one;
//  5. fsync the app's directory.
//
// No blob is ever modified where it stands, and nothing but [App.Collect] deletes
// one, except that a change which fails takes back what it brought itself (undo.go).
// Owner, mode and ACL of what is replaced are kept. Working files that need a
// name for longer (where the file system has no unnamed ones) lie in a directory `.irfs/.work-<random>/` of the app, or of the registry for
// an app that is not there yet, which its owner holds locked; what the dead
// of the same user left is removed by the next change. Nothing else in a `.irfs/` is ever removed.
//
// # Names that somebody exchanges
//
// Whoever may write a directory may rename what is in it, at any time. So an App, and a [Dir], is the directory that its name led to when it
// was looked up ([ID]): if the name leads to another one, what would be read or changed there is [ErrMoved]. What is changed is changed
// through the directory that was opened and locked; and if somebody else asks for the change, his [Rights] are asked of that open
// directory, never of its name. An import opens the directory that it makes an app in with the importer's rights, and what comes into the app
// shares no file with another user than him and root.
//
// # Archives
//
// An archive is taken in by [Registry.Stage], as an app that nobody sees, which
// may be read and changed like any other until [Staged.Publish] renames it
// to its place, or adds it to the app that is there, in one step. It is read once,
// from its beginning to its end; each file is written to its final place while it
// is read, and hashed beside that (landing.go). An [Arrival] is an archive that
// somebody writes, in any order, as programs write files.
//
// An archive is what `docker save` and its like make, in tar (POSIX.1-2024, pax,
// and GNU's long names), maybe compressed (compression.go). Of tar only what all
// readers understand in the same way is taken: no sparse files, no links
// but those to layers, no two extension headers of one kind, no directory with a
// size. Docker's own format becomes an OCI image layout (docker.go), and whatever a registry
// server would not take is put right (normal.go); configs never change.
//
// # Remembering
//
// What was read is kept with the [Stamp] of its file, and read again when
// the stamp has changed: of index.json a row for each descriptor (rows.go), of nested indexes all, of manifests and configs the last few.
// That nothing changed is seen by stat(2) alone ([Registry.Look], [Snapshot.Unmoved]). A file that had changed less than two seconds before it
// was read is compared by content, since its times cannot show the next change; and so, for ever, is one whose times prove nothing, for others may
// write it, somebody has it open for writing, or its file system lets times be set (keep.go decides, [Registry.Remembers] says).
package layout
