package faults

func missingRows() []badLayout      { return nil }
func missingGoodRows() []goodLayout { return nil }
