// A call with the AI SDK, as in its README.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";
import { main } from "./report.mjs";

async function chat(call, seen) {
  const provider = createOpenAICompatible({ name: "nowserving", baseURL: call.base, apiKey: call.key });
  const answer = await generateText({ model: provider(call.model), prompt: call.say, ...call.options });
  Object.assign(seen, { finish: answer.finishReason });
  seen.show(answer.text);
}

await main({ chat });
