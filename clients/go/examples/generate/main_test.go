package main

import (
	"context"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	weave "weave-compute/clients/go"
	"weave-compute/clients/go/internal/testdaemon"
)

var daemon *testdaemon.Daemon

func TestMain(m *testing.M) { testdaemon.Main(m, &daemon) }

func TestEachImageIsWritten(t *testing.T) {
	output := filepath.Join(t.TempDir(), "shapes.png")
	err := run(context.Background(), []string{
		"-socket", daemon.Socket, "-o", output, "-steps", "2", "-images", "2", "-seed", "0", "a", "red", "circle",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shapes-0.png", "shapes-1.png"} {
		file, err := os.Open(filepath.Join(filepath.Dir(output), name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if picture, err := png.Decode(file); err != nil || picture.Bounds().Dx() != 128 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnImageIsTheStartOfTheNext(t *testing.T) {
	folder := t.TempDir()
	first, second := filepath.Join(folder, "first.png"), filepath.Join(folder, "second.png")
	for _, arguments := range [][]string{
		{"-o", first, "-steps", "1", "a red circle"},
		{"-o", second, "-steps", "2", "-image", first, "-mask", first, "-strength", "0.5", "a blue star"},
	} {
		if err := run(context.Background(), append([]string{"-socket", daemon.Socket}, arguments...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(context.Background(), []string{"-socket", daemon.Socket, "-image", "none.png", "x"}); err == nil {
		t.Error("a file that does not exist is ignored")
	}
}

func TestControlCharactersAreEscaped(t *testing.T) {
	const hostile = "a\x1b[31m b\u009b1m c\u202e d\x7f é"
	if got := visible(hostile); got != `a\x1b[31m b\u009b1m c\u202e d\x7f é` {
		t.Errorf("got %q", got)
	}
}

func TestRefusalIsAnError(t *testing.T) {
	arguments := []string{"-socket", daemon.Socket, "-steps", "101", "-cfg", "0", "a red circle"}
	if err := run(context.Background(), arguments); !errors.Is(err, weave.OutOfBounds) {
		t.Errorf("got %v", err)
	}
}

func TestInterruptCancels(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := run(ctx, []string{"-socket", daemon.Socket, "a red circle"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
