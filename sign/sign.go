// Package sign is the chain of trust of an Image Registry: keys, certificates,
// signatures, and what they say of an image.
//
// # The chain
//
// A root CA and a vendor each have an ECDSA key pair on P-384 (secp384r1). The
// CA signs the vendor's public key: that signature is the certificate. The vendor
// signs the image's config. All of it lies as three annotations on the image
// manifest, with values in hex, written in lower case and read in either:
//
//	com.samsung.islet.image.signature            by the vendor, of the config blob's bytes
//	com.samsung.islet.image.vendorpub            the vendor's public key
//	com.samsung.islet.image.vendorpub.signature  by the root CA, of that key's bytes
//
// So whoever has the CA's public key can check an image with nothing else.
// The config names its layers by the digests of what they unpack to
// (rootfs.diff_ids), and so the signature covers the files in the image, once
// the layers have been compared with it.
//
// # Formats
//
// Everything is binary compatible with the openssl command line, both ways.
//
//	signature    ASN.1 DER ECDSA-Sig-Value (RFC 3279) over SHA-384, 102 to 104 bytes mostly
//	public key   SubjectPublicKeyInfo DER (RFC 5480), uncompressed point, 120 bytes
//	private key  SEC1 ECPrivateKey DER (RFC 5915), 167 bytes; PKCS#8 and PEM are read as well
//	fingerprint  SHA-256 of a public key's DER, in lower-case hex
//
// Signing is deterministic (RFC 6979): the same key and bytes give the same
// signature, and so the same image signed by the same keys has the same digest
// everywhere. A signature's bytes are no identity all the same: for each (r, s)
// the pair (r, n-s) verifies too.
//
// # Verifying
//
// [Verifier.Verify] makes these checks, in this order, on the very bytes that it
// read, and ends with the first that fails:
//
//	manifest     its size and digest are the descriptor's; strict parse       corrupt
//	config       its size and digest are the manifest's; strict parse         corrupt
//	rootfs       type "layers"; as many layers as diff_ids                    corrupt
//	annotations  none of the three is there                                   unsigned
//	             one or two are missing, or not hex                           invalid
//	vendor key   an SPKI P-384 key                                            invalid
//	signature    of the config, by the vendor key                             invalid
//	certificate  of the vendor key: malformed                                 invalid
//	             no CA is configured                                          unknown
//	             by none of the configured CAs                                untrusted
//	                                                                          verified
//
// A signature is verified by the formula of SEC 1 with points that are added by circl, or for a key that is used often by nistec and
// its multiples (multiples.go); crypto/ecdsa is asked before anything is refused. It parses keys, and it alone signs.
//
// With full, every layer is read as well: size and digest of the blob, that it begins as its media type says, and that
// what it unpacks to, to the end of the stream, has the config's diff_id; if not, the
// image is corrupt. Only then is the signature one of the files. An image that would be verified is corrupt if it brings a table of contents of a
// layer, which some programs go by, and which is not checked yet. Of an artifact config and layers are compared with their digests.
//
// An index has the worst word of the images in it, worst first: corrupt,
// invalid, untrusted, unsigned, unknown, verified. An image whose manifest is not in
// the layout does not count, and neither does an attestation. What is no image
// is unsigned, and the reason says so.
//
// # Signing
//
// [Signer.Sign] puts the three annotations on every image in what was chosen, in
// one change. Refused, with nothing changed: an image that is corrupt, for
// signing would launder it; what is no image (inside an index it is left out, and
// the outcome says so); a key that is not P-384, or whose
// public half is not its own; a vendor's key that is the CA's; a certificate
// that the CA did not make, before anything is signed.
package sign
