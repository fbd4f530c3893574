"""An OpenAI-compatible server of soft prompts: the model `tone` is the base model behind the soft prompt `tone`.

Needs the extra `softprompt[serve]`. `app.create_app` makes the ASGI app, `listen.run` runs it with its service.
"""
