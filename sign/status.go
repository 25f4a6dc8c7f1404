package sign

// A Status is the one word that says whether an image can be trusted. The set
// is closed.
type Status string

const (
	Verified  Status = "verified"  // every check passed
	Unknown   Status = "unknown"   // no CA is configured, and nothing else is wrong
	Unsigned  Status = "unsigned"  // none of the three annotations is there, or it is not an image
	Untrusted Status = "untrusted" // the vendor key is not certified by any configured CA
	Invalid   Status = "invalid"   // signature data malformed or incomplete, or the config's signature does not match
	Corrupt   Status = "corrupt"   // a digest, size or structure is wrong, a blob is missing, or a limit is exceeded
)

// Statuses lists all of them, best first.
func Statuses() []Status {
	return []Status{Verified, Unknown, Unsigned, Untrusted, Invalid, Corrupt}
}

func (s Status) rank() int {
	for i, t := range Statuses() {
		if s == t {
			return i
		}
	}
	return len(Statuses())
}

// Worse says whether s is worse than t.
func (s Status) Worse(t Status) bool { return s.rank() > t.rank() }
