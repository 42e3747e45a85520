package weave

import "regexp"

// The characters allowed in a daemon's names and titles. They end up in terminals, shells and web pages, so each
// client checks them; docs/protocol.md, "Text".
var (
	modelID   = regexp.MustCompile(`\A[a-z0-9][a-z0-9._-]{0,63}\z`)
	plainName = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}\z`)
	// No control characters, line separators, directional marks and overrides, or invisible characters.
	title = regexp.MustCompile(`\A[^\x00-\x1f\x7f-\x{9f}\x{61c}\x{200b}\x{200e}\x{200f}\x{2028}-\x{202e}` +
		`\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffb}\x{e0000}-\x{e007f}]{0,256}\z`)
)

// matching fails the event if one of the texts does not match the pattern.
func (f *fields) matching(field string, pattern *regexp.Regexp, texts ...string) {
	for _, text := range texts {
		if f.err == nil && !pattern.MatchString(text) {
			f.err = protocolError("the field %s is %.80q", field, text)
		}
	}
}

func (f *fields) matchingOrEmpty(field string, pattern *regexp.Regexp, text string) {
	if text != "" {
		f.matching(field, pattern, text)
	}
}
