"""POST /v1/responses and its kin: OpenAI's Responses API over the same jobs as a chat."""
