package main

import (
	"testing"
	"time"
)

func TestGrace(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "90m": 90 * time.Minute, "336h": 14 * day, "14d": 14 * day, "2w": 14 * day, "1d12h": 36 * time.Hour,
		"1w2d3h4m": 9*day + 3*time.Hour + 4*time.Minute, "1.5d": 36 * time.Hour, ".5w": 84 * time.Hour, "0d": 0, "+1d": day,
	} {
		if got, err := parseGrace(text); got != want || err != nil {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "d", "14", "14 d", "1y", "14D", "-1d", "-0.5h", "--1d", "1d-2h", "1.2.3d", "1d,", "NaNd", "Infd", "0x1d", "1e3d", "99999999999999w", "106752d",
	} {
		if got, err := parseGrace(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}
