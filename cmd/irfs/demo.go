package main

func runDemo(c *command, args []string) error {
	if err := c.parse(newFlags(c), args, 0, 0); err != nil {
		return err
	}
	return nil
}
