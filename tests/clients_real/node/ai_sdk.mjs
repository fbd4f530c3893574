// Vercel's AI SDK: node ai_sdk.mjs FEATURE URL MODEL prints JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamText, tool } from "ai";

const [feature, baseURL, name] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "own", baseURL, apiKey: "any", supportsStructuredOutputs: true });
const model = provider(name);
const prompt = "Is the parcel in Rome or in Oslo?";
const common = { maxRetries: 0, maxOutputTokens: 8 };
const schema = jsonSchema({
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
});
const features = {
  chat: async () => (await generateText({ model, prompt, system: "Be brief.", ...common })).text,
  streaming: async () => {
    const parts = [];
    for await (const part of streamText({ model, prompt, ...common }).textStream) parts.push(part);
    return parts;
  },
  tools: async () => {
    const tools = { find_parcel: tool({ description: "Find it.", inputSchema: schema }) };
    const made = await generateText({ model, prompt, tools, toolChoice: "required", maxRetries: 0, maxOutputTokens: 60 });
    return made.toolCalls[0].input;
  },
  structured_output: async () =>
    (await generateObject({ model, prompt, schema, maxRetries: 0, maxOutputTokens: 60 })).object,
  responses: async () => {
    const own = createOpenAI({ baseURL, apiKey: "any" });
    const parts = [];
    for await (const part of streamText({ model: own(name), prompt, ...common }).textStream) parts.push(part);
    return [(await generateText({ model: own(name), prompt, ...common })).text, parts.join("")];
  },
  errors: async () => {
    try {
      await generateText({ model: provider(`${name}-not`), prompt, ...common });
    } catch (error) {
      return [error.name, error.statusCode, error.message];
    }
  },
};
console.log(JSON.stringify(await features[feature]()));
