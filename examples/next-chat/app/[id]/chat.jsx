'use client';

import { useChat } from '@ai-sdk/react';
import { DefaultChatTransport } from 'ai';
import { useState } from 'react';

const transport = new DefaultChatTransport({ api: '/api/chat' });

export function Chat({ id, messages: known }) {
  const [text, setText] = useState('');
  // `resume`: a page that is loaded in the middle of a reply reads on.
  const chat = useChat({ id, messages: known, transport, resume: true });
  const { messages, status, error, sendMessage, regenerate } = chat;
  const stop = async () => {
    // Leaving the stream alone would not end the reply: a page that is loaded again leaves it, too.
    await fetch(`/api/chat/${id}/stop`, { method: 'POST' });
  };
  return (
    <main>
      {messages.map((message) => (
        <article key={message.id} id={message.id} data-role={message.role}>
          {message.parts.map((part, index) => (part.type === 'text' ? <p key={index}>{part.text}</p> : null))}
        </article>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          sendMessage({ text });
          setText('');
        }}
      >
        <input aria-label="message" value={text} onChange={(event) => setText(event.target.value)} />
        <button disabled={status !== 'ready'}>Send</button>
      </form>
      <button onClick={() => regenerate()} disabled={status !== 'ready' || messages.length === 0}>
        Again
      </button>
      <button onClick={stop} disabled={status !== 'streaming'}>
        Stop
      </button>
      <output>{status}</output>
    </main>
  );
}
