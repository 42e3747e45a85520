// Command generate generates images from a prompt and writes them as PNG files. Ctrl-C cancels the job.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	_ "image/gif"
	_ "image/jpeg"
	_ "image/png"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	weave "weave-compute/clients/go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", visible(err.Error()))
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: generate [flags] PROMPT")
		flags.PrintDefaults()
	}
	var request weave.GenerateRequest
	socket := flags.String("socket", "", "the `path` of the daemon's socket, instead of the default")
	output := flags.String("o", "picture.png", "the `file` to write; with several images, each name gets a number")
	seed := flags.Uint64("seed", 0, "the same seed generates the same image (default random)")
	cfgScale := flags.Float64("cfg", 0, "how closely to follow the prompt (default the model's)")
	flags.StringVar(&request.Model, "model", "", "a model's `ID` (default the loaded model, or else the daemon's default)")
	flags.StringVar(&request.NegativePrompt, "negative", "", "what the image must not show")
	flags.StringVar(&request.Scheduler, "scheduler", "", "the scheduler's `name`")
	flags.IntVar(&request.Width, "width", 0, "`pixels`")
	flags.IntVar(&request.Height, "height", 0, "`pixels`")
	flags.IntVar(&request.Steps, "steps", 0, "the number of steps")
	flags.IntVar(&request.Images, "images", 1, "the number of images")
	start := flags.String("image", "", "the PNG, JPEG or GIF `file` to start from")
	mask := flags.String("mask", "", "the `file` that is white where the image is repainted")
	strength := flags.Float64("strength", 0, "how much of the image to change, from 0 to 1 (default 0.75)")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	request.Prompt = strings.Join(flags.Args(), " ")
	if request.Prompt == "" {
		flags.Usage()
		return errors.New("there is no prompt")
	}
	flags.Visit(func(given *flag.Flag) {
		switch given.Name { // 0 is a valid value of these, so only the flag itself tells whether they were set
		case "seed":
			request.Seed = seed
		case "cfg":
			request.CFGScale = cfgScale
		case "strength":
			request.Strength = strength
		}
	})
	if *start != "" {
		decoded, err := decode(*start)
		if err != nil {
			return err
		}
		request.Image = weave.FromImage(decoded)
	}
	if *mask != "" {
		decoded, err := decode(*mask)
		if err != nil {
			return err
		}
		request.Mask = weave.MaskFromImage(decoded)
	}
	client, err := weave.Dial(ctx, *socket)
	if err != nil {
		return err
	}
	defer client.Close()
	return generate(ctx, client, request, *output)
}

func decode(path string) (image.Image, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	decoded, _, err := image.Decode(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return decoded, nil
}

// generate writes each image as soon as it is finished.
func generate(ctx context.Context, client *weave.Client, request weave.GenerateRequest, output string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // also ends the job if a file cannot be written
	job, err := client.Generate(ctx, request)
	if err != nil {
		return err
	}
	for event := range job.Events() {
		switch event := event.(type) {
		case weave.Queued:
			fmt.Fprintf(os.Stderr, "queued, %d jobs ahead\n", event.Position)
		case weave.Loading:
			fmt.Fprintf(os.Stderr, "loading %s\n", event.Model)
		case weave.Progress:
			fmt.Fprintf(os.Stderr, "\rimage %d, step %d of %d", event.Image+1, event.Step, event.Steps)
		case *weave.Image:
			fmt.Fprintln(os.Stderr)
			if err := write(event, fileName(output, event.Index, request.Images)); err != nil {
				return err
			}
		}
	}
	_, done, err := job.Wait()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "seed %d, %.1f s\n", done.Seed, done.Timings.Generating.Seconds())
	return nil
}

// visible escapes every character that is not printable: an error may contain a file name or text from another
// program, and a terminal obeys control characters.
func visible(text string) string {
	var shown strings.Builder
	for _, char := range text {
		if strconv.IsPrint(char) {
			shown.WriteRune(char)
		} else {
			shown.WriteString(strings.Trim(strconv.QuoteRune(char), "'"))
		}
	}
	return shown.String()
}

func write(image *weave.Image, path string) error {
	data, err := image.Bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// fileName returns picture.png for one image, and picture-0.png, picture-1.png, ... for more.
func fileName(output string, index, images int) string {
	if images <= 1 {
		return output
	}
	extension := filepath.Ext(output)
	return fmt.Sprintf("%s-%d%s", strings.TrimSuffix(output, extension), index, extension)
}
