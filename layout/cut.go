package layout

import "strings"

// MaxText is how many bytes of one text that a layout gives (a media type, a platform, a tag, the name of a member) an error, a reason or a report holds:
// a document may have one of many MiB.
const MaxText = 200

// wasCut ends what was cut.
const wasCut = " ... (cut)"

// Short is a text of a layout as messages hold it: [Cut] to MaxText bytes.
func Short(text string) string { return Cut(text, MaxText) }

// Cut returns a text of at most that many bytes as it is, and of a longer one as much of its beginning, in whole characters, as with ` ... (cut)` is not
// longer than that. It does not keep the whole text in memory.
func Cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-len(wasCut)], "") + wasCut
}
