package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"kiln.build/exporter/images"
)

func (a *app) historyCommand() *cobra.Command {
	var quiet, noTrunc, human bool
	var format string
	c := &cobra.Command{
		Use:     "history [flags] IMAGE",
		Short:   "Show how an image was made",
		Example: "  kiln history hello\n  kiln history --no-trunc --format '{{.CreatedBy}}' hello",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(func(s *images.Store) error {
				rows, err := imageHistory(c.Context(), s, args[0], noTrunc, human)
				if err != nil {
					return err
				}
				if quiet && format == "" {
					format = "{{.ID}}"
				}
				return printRows(a.stdout, format, "{{.ID}}\t{{."+createdColumn(human)+"}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}", map[string]string{
					"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT",
				}, rows)
			})
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image IDs")
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "print everything in full")
	c.Flags().BoolVarP(&human, "human", "H", true, "print sizes and times for people")
	c.Flags().StringVar(&format, "format", "", formatHelp)
	return c
}

func createdColumn(human bool) string {
	if human {
		return "CreatedSince"
	}
	return "CreatedAt"
}

// historyRow is a line of kiln history.
type historyRow struct {
	Comment      string
	CreatedAt    string
	CreatedBy    string
	CreatedSince string
	ID           string
	Size         string
}

// history lists the entries of an image, the newest first.
func imageHistory(ctx context.Context, s *images.Store, name string, noTrunc, human bool) ([]historyRow, error) {
	image, err := s.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	if image.Err != nil {
		return nil, image.Err
	}
	layer := 0
	var rows []historyRow
	for _, h := range image.Config.History {
		var size int64
		if !h.EmptyLayer && layer < len(image.Documents.Layers) {
			size = s.LayerSize(image.Documents.Layers[layer])
			layer++
		}
		r := historyRow{ID: "<missing>", Comment: h.Comment, CreatedAt: "N/A", CreatedSince: "N/A", Size: strconv.FormatInt(size, 10)}
		if h.Created != nil {
			r.CreatedAt, r.CreatedSince = h.Created.Local().Format(time.RFC3339), ago(*h.Created)
		}
		if human {
			r.Size = humanSize(size)
		}
		r.CreatedBy = strings.ReplaceAll(h.CreatedBy, "\t", " ")
		if !noTrunc {
			r.CreatedBy = ellipsis(r.CreatedBy, 45)
		}
		rows = append([]historyRow{r}, rows...)
	}
	if len(rows) > 0 {
		rows[0].ID = shortID(image.ID)
		if noTrunc {
			rows[0].ID = string(image.ID)
		}
	}
	return rows, nil
}

// ellipsis shortens a text to so many characters.
func ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
