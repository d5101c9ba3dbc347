"""A comparison of codecs as one page: `report.html_page` draws what `rate.comparison` has measured."""
