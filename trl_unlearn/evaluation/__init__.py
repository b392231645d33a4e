"""What an unlearned model still says and still finds probable: one scoring pass, one generation pass, one dict."""
