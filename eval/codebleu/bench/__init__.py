"""What measures this implementation: throughput, sample code, and variants of code for rankings."""
