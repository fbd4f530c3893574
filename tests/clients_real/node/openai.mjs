// OpenAI's Node client: node openai.mjs FEATURE URL MODEL prints JSON.
import OpenAI from "openai";

const [feature, baseURL, model] = process.argv.slice(2);
const ai = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Is the parcel in Rome or in Oslo?" }];
const schema = {
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const features = {
  chat: async () => (await ai.chat.completions.create({ model, messages, max_tokens: 8 })).choices[0].message.content,
  streaming: async () => {
    const parts = [];
    for await (const chunk of await ai.chat.completions.create({ model, messages, max_tokens: 8, stream: true })) {
      parts.push(chunk.choices[0]?.delta?.content ?? "");
    }
    return parts;
  },
  tools: async () => {
    const tools = [{ type: "function", function: { name: "find_parcel", parameters: schema } }];
    const tool_choice = { type: "function", function: { name: "find_parcel" } };
    const made = await ai.chat.completions.create({ model, messages, tools, tool_choice, max_tokens: 60 });
    return JSON.parse(made.choices[0].message.tool_calls[0].function.arguments);
  },
  structured_output: async () => {
    const response_format = { type: "json_schema", json_schema: { name: "place", schema, strict: true } };
    const made = await ai.chat.completions.create({ model, messages, response_format, max_tokens: 60 });
    return JSON.parse(made.choices[0].message.content);
  },
  responses: async () => (await ai.responses.create({ model, input: "Say hello.", max_output_tokens: 8 })).output_text,
  errors: async () => {
    try {
      await ai.chat.completions.create({ model: `${model}-not`, messages });
    } catch (error) {
      return [error.constructor.name, error.status, error.code];
    }
  },
};
console.log(JSON.stringify(await features[feature]()));
