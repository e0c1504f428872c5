/** The history of chats of LangChain, kept by a Colloquy service. */
export {
  ColloquyChatMessageHistory,
  type ColloquyChatMessageHistoryOptions,
} from './client/langchain-history.js';
