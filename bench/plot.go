package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
)

// plot writes an SVG of the series, both axes logarithmic: a cost that stays flat is a level line.
func plot(w io.Writer, series map[string][]point) error {
	const width, height, left, right, top, bottom = 860, 420, 70, 230, 30, 50
	low, high := math.Inf(1), math.Inf(-1)
	most := 1000
	for _, points := range series {
		for _, p := range points {
			low, high = min(low, math.Floor(math.Log10(p.cost))), max(high, math.Ceil(math.Log10(p.cost)))
			most = max(most, p.images)
		}
	}
	x := func(images int) float64 {
		return left + (math.Log10(float64(images))-2)/(math.Log10(float64(most))-2)*(width-left-right)
	}
	y := func(log float64) float64 { return height - bottom - (log-low)/(high-low)*(height-top-bottom) }
	out := &failing{w: w}
	out.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	out.printf(`<rect width="100%%" height="100%%" fill="white"/>` + "\n")
	for log := low; log <= high; log++ {
		out.printf(`<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left, y(log), width-right, left-8, y(log)+4, seconds(math.Pow(10, log)))
	}
	for images := 100; images <= most; images *= 10 {
		out.printf(`<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(images), height-bottom+20, images)
	}
	out.printf(`<text x="%d" y="%d" text-anchor="middle">images in the registry</text>`+"\n", (left+width-right)/2, height-10)
	colors := []string{"#1b6ca8", "#c0392b", "#27834a", "#8e44ad", "#b9770e"}
	for i, name := range slices.Sorted(maps.Keys(series)) {
		color := colors[i%len(colors)]
		path := ""
		for j, p := range series[name] {
			path += fmt.Sprintf("%c%.1f %.1f", "ML"[min(j, 1)], x(p.images), y(math.Log10(p.cost)))
		}
		last := series[name][len(series[name])-1]
		out.printf(`<path d="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%.1f" y="%.1f" fill="%s">%s</text>`+"\n",
			path, color, x(last.images)+8, y(math.Log10(last.cost))+4, color, name)
	}
	out.printf("</svg>\n")
	return out.err
}

func seconds(s float64) string {
	switch {
	case s < 1e-3:
		return fmt.Sprintf("%g µs", math.Round(s*1e6))
	case s < 1:
		return fmt.Sprintf("%g ms", math.Round(s*1e3))
	}
	return fmt.Sprintf("%g s", s)
}

// failing prints until something fails.
type failing struct {
	w   io.Writer
	err error
}

func (f *failing) printf(format string, args ...any) {
	if f.err == nil {
		_, f.err = fmt.Fprintf(f.w, format, args...)
	}
}
